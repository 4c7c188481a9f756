"""Where trials run: the study proposes, an engine executes."""
