"""The broker: the process that hands out duplicates, keeps registrations and carries out reloads."""
