//! The kernels that convolve, as their sources declare them.

use crate::gemm::{Tile, tile};
use crate::launch::Kernel;
use crate::params::ConvParams;

/// Tiles of the implicit matrix product for f32, tf32 and f16, the largest first.
pub(crate) static TILES: [[Tile; 3]; 3] = [
    [
        tile::<ConvParams>("rota_conv_f32_128x64", &[256], [128, 64, 16]),
        tile::<ConvParams>("rota_conv_f32_64x64", &[256], [64, 64, 16]),
        tile::<ConvParams>("rota_conv_f32_16x64", &[128], [16, 64, 32]),
    ],
    [
        tile::<ConvParams>("rota_conv_tf32_128x64", &[256], [128, 64, 16]),
        tile::<ConvParams>("rota_conv_tf32_64x64", &[128], [64, 64, 16]),
        tile::<ConvParams>("rota_conv_tf32_32x64", &[64], [32, 64, 16]),
    ],
    [
        tile::<ConvParams>("rota_conv_f16_128x64", &[256], [128, 64, 32]),
        tile::<ConvParams>("rota_conv_f16_64x64", &[128], [64, 64, 32]),
        tile::<ConvParams>("rota_conv_f16_32x64", &[64], [32, 64, 32]),
    ],
];

/// The same for NHWC: rows are pixels, columns filters.
pub(crate) static TILES_NHWC: [[Tile; 3]; 3] = [
    [
        tile::<ConvParams>("rota_conv_f32_128x64_nhwc", &[256], [128, 64, 16]),
        tile::<ConvParams>("rota_conv_f32_64x64_nhwc", &[256], [64, 64, 16]),
        tile::<ConvParams>("rota_conv_f32_16x64_nhwc", &[128], [16, 64, 32]),
    ],
    [
        tile::<ConvParams>("rota_conv_tf32_128x64_nhwc", &[256], [128, 64, 16]),
        tile::<ConvParams>("rota_conv_tf32_64x64_nhwc", &[128], [64, 64, 16]),
        tile::<ConvParams>("rota_conv_tf32_32x64_nhwc", &[64], [32, 64, 16]),
    ],
    [
        tile::<ConvParams>("rota_conv_f16_128x64_nhwc", &[256], [128, 64, 32]),
        tile::<ConvParams>("rota_conv_f16_64x64_nhwc", &[128], [64, 64, 32]),
        tile::<ConvParams>("rota_conv_f16_32x64_nhwc", &[64], [32, 64, 32]),
    ],
];

const BLOCKS: &[u32] = &[32, 64, 128];

/// By element type: 3x3, 3x3 of stride 2, 5x5, 5x5 of stride 2, any other.
pub(crate) static DEPTHWISE: [[Kernel; 5]; 2] = [
    [
        Kernel::new::<ConvParams>("rota_depthwise_f32_3x3", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_3x3_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_5x5", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_5x5_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_any", BLOCKS),
    ],
    [
        Kernel::new::<ConvParams>("rota_depthwise_f16_3x3", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_3x3_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_5x5", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_5x5_stride2", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_any", BLOCKS),
    ],
];

/// The same for NHWC.
pub(crate) static DEPTHWISE_NHWC: [[Kernel; 5]; 2] = [
    [
        Kernel::new::<ConvParams>("rota_depthwise_f32_3x3_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_3x3_stride2_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_5x5_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_5x5_stride2_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f32_any_nhwc", BLOCKS),
    ],
    [
        Kernel::new::<ConvParams>("rota_depthwise_f16_3x3_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_3x3_stride2_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_5x5_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_5x5_stride2_nhwc", BLOCKS),
        Kernel::new::<ConvParams>("rota_depthwise_f16_any_nhwc", BLOCKS),
    ],
];

/// By element type.
pub(crate) static TRANSPOSE: [Kernel; 2] = [
    Kernel::new::<ConvParams>("rota_conv_transpose_f32", BLOCKS),
    Kernel::new::<ConvParams>("rota_conv_transpose_f16", BLOCKS),
];
