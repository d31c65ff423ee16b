"""The device as a circuit: a network of op-amp integrators, written as a netlist and simulated with ngspice."""
