"What the tests start inherits from here: one thread, since tensors are small; and Ctrl-C, which a shell takes from what it starts in the background"
import os, signal
os.environ.setdefault('OMP_NUM_THREADS', '1')   # read when torch is first imported
signal.signal(signal.SIGINT, signal.default_int_handler)
