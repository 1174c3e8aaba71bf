"""Random faults on a team of real processes; see README.md."""
