"""Exceptions that mean: the request was wrong, the engine is well."""


class UserError(ValueError):
    """A request that cannot be carried out as it was made; its text is shown to the user."""

    status = 400  # of the HTTP answer. The SDK repeats 409 and 5xx in silence, so never those.


class TooLargeError(UserError):
    """More than a limit of the engine allows in one request."""

    status = 413


class BusyError(UserError):
    """More requests are waiting than the engine holds. The SDK waits and sends again."""

    status = 429


class GoneError(UserError):
    """What was there once is there no longer. It ends the SDK's heartbeats."""

    status = 410
