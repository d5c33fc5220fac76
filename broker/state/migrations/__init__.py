"""The steps that bring an older database up to date.

One that was released stays as it is, whatever becomes of the tables since. So it says by itself what it
makes, though ``broker.state.database`` says the same as long as nothing has changed.
"""
