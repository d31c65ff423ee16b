"""What host and daemon share: curvature operators, programs, their wire form, and errors."""
