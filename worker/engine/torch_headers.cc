#include "worker/engine/torch_headers.h"
