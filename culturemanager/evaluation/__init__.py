"""Ten systems on the same held-out items: the comparison (`runner`), its figures (`metrics`) and the report (`report`)."""
