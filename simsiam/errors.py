"""The one exception that a user is meant to read, and what becomes one."""


class UserError(Exception):
    """Something that the user can mend. Its text is the whole message: what is wrong, where, and what to do."""


class Unusable(ValueError):
    """Why a source of images cannot be used. Its text goes on after the name of the source: "has one class only, cat"."""
