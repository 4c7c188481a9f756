"""The version of kdsearch, for files and messages."""

VERSION = "0.1.0"
