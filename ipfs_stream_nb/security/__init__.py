"""Who may do what: the access policy and capability tokens."""
