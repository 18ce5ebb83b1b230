//! Schedules a graph of ops and finds cached results; generic over the result, no I/O of its own.
