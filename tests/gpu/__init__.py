"Tests on a CUDA device: `pytest -m gpu`; `SDN_GPU_REHEARSE=1 pytest -m gpu tests/gpu` tries them on a processor"
