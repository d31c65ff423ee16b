"""Version 1 of the SPU interface: messages in ``spu_pb2``, client stub and servicer in ``spu_pb2_grpc``."""
