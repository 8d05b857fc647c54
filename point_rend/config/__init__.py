"""Config keys, safe loading of YAML files, and checks."""
