"""Tests of the engine; the checks in `calls` explain their failures as tests do."""

import pytest

pytest.register_assert_rewrite("tests.engine.calls")
