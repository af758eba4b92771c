"""From what is loaded: the search for few moves."""
