/* Loaded before PyTorch's CUDA libraries where there is no driver: one device that is always the current one, so that what
 * PyTorch does around every call (look which device is current, and go back to it) needs none. */
int cudaGetDevice(int* device) { return *device = 0; }
int cudaSetDevice(int device) { return (void)device, 0; }
int cudaGetDeviceCount(int* count) { return *count = 1, 0; }
/* c10::cuda::MaybeSetDevice and MaybeExchangeDevice, which ask the driver for its contexts */
int _ZN3c104cuda14MaybeSetDeviceEa(signed char device) { return (void)device, 0; }
int _ZN3c104cuda20MaybeExchangeDeviceEa(signed char device) { return (void)device, 0; }
