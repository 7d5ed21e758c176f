"""The one exception that means: the request was wrong, the engine is well."""


class UserError(ValueError):
    """A request that cannot be carried out as it was made; its text is shown to the user."""
