"""What kernels are given: the columns of a table of addresses, and the words of a task.

The columns are the fields of `oneadam._engines.Buffers`, in their order, and also the roles of the
arrays in a kernel. A task is one array of words, which all threads that run a kernel share.
"""

PARAM, GRAD, ACCUMULATOR, MOMENTUM, VELOCITY, VELOCITY_MAX, AVERAGE = range(7)
COLUMNS = 7
STATE = tuple(range(ACCUMULATOR, COLUMNS))

# Which share is the next, of how many; the address of where the pieces of each begin; whether the
# last is taken first. The addresses of the tables, and how far apart the scalars of two variables
# are: not at all where they are the same. Numbers, of which the last three are float64.
TAKEN, SHARES, EDGES, BACKWARDS, TABLE, PIECES, SCALARS, STRIDE, SUMS, OVERWRITE = range(10)
LOSS_SCALE, LIMIT, FACTOR = range(10, 13)
WORDS = 13
