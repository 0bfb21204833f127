"""What belongs to one run: points, schedule, rows, transitions, files and sentences."""
