"The tests work on small tensors, where a second thread costs more than it gives; what they start inherits the setting"
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')   # read when torch is first imported
