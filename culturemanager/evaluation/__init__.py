"""Ten systems on the same held-out items: the comparison (`runner`) with its figures (`metrics`), what it
comes to (`results`), and the report (`report`)."""
