"""The report of a study, the files derived from its trials, the dashboard, the comparison.

Functions turn records and their summary into HTML, Markdown, SVG, CSV and JSON; nothing is trained
or measured here. No torch.
"""
