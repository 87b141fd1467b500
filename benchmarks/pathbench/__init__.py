"""Tables of trained paths; see README.md here."""
