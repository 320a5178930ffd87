import pytest

# Its assertions are to say what they compared, as those of the tests do.
pytest.register_assert_rewrite("tests.ecosystem.languages")
