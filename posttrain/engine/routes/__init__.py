"""The routes of the Tinker API, by what they are about."""
