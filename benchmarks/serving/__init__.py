"""What serving costs and withstands, measured on real clusters over real HTTP (docs/serving.md)."""
