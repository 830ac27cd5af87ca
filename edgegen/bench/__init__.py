"""How things are measured: every number comes with how it was got."""
