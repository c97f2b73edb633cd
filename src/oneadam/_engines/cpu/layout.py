"""The columns of a table of addresses, which are also the roles of the arrays in a kernel."""

PARAM, GRAD, ACCUMULATOR, MOMENTUM, VELOCITY, VELOCITY_MAX, AVERAGE = range(7)
COLUMNS = 7
