"""The columns of a table of addresses, which are also the roles of the arrays in a kernel.

They are the fields of `oneadam._engines.Buffers`, in their order.
"""

PARAM, GRAD, ACCUMULATOR, MOMENTUM, VELOCITY, VELOCITY_MAX, AVERAGE = range(7)
COLUMNS = 7
STATE = tuple(range(ACCUMULATOR, COLUMNS))
