"""Path searches on Ray Tune: a thin shell round the sampler and the trainer of code_ray."""
