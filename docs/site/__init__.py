"""The documentation's site: `make docs` writes build/site. Imported by nothing but its tests."""
