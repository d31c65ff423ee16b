"""A board in software, at the other end of a real line: what a driver can be tried on without hardware."""
