"""Tables of trained paths, and samplers measured on them; see README.md here."""
