"""Things to run: the demo, and a load of real HTTP requests. Run from the root of the repository."""
