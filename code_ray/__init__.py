"""code_ray: deep-learning services borrow each other's idle blocks (CoDE)."""
