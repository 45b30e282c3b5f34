/* What the runtime's header wants of nvcc's, which no wheel brings: attributes that a C compiler needs not. */
#define __host__
#define __device__
#define __device_builtin__
#define __cudart_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define CUDARTAPI
#define CUDART_CB
#define __inline__ inline
#define __forceinline__ inline
