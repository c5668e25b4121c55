"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the user can mend. Its text is the whole message: what is wrong, where, and what to do."""
