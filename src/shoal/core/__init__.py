"""Pure decisions.

Nothing below here reads a clock, draws a random number, logs, opens a file or touches a socket or thread; all of
that arrives as arguments and leaves as effects. The ban is checked by ``make lint``.
"""
