"""What is made of variants for other ways of serving, emitted and proven; one file per kind."""
