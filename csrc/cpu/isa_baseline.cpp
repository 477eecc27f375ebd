// Any processor: what isa.h takes where nothing is asked for.
#include "isa_engine.h"
