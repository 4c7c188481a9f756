"""Tasks: what the labels ask of a student and how its answers are judged."""
