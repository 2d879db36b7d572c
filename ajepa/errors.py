"""The one exception that means "the user can fix this": commands print it as a single line and exit with 2."""


class UserError(ValueError):
    """A mistake in the input or the options. The message says what is wrong and what to do about it."""
