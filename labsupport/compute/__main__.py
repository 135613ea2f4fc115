"""`python -m labsupport.compute openvino bf16` measures one runtime in a process of its own and prints it as JSON."""

from labsupport.compute import measurement

measurement.main()
