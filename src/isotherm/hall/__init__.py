"""Where rooms, mind and engine meet; `isotherm.balancer` is its face."""
