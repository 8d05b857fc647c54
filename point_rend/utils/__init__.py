"""Files, errors, seeding, arguments."""
