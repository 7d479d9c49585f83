"""Scripts for `ray job submit`: parse, build, run, save."""
