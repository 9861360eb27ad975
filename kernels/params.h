// params.h: what each kernel is told, one struct by value per kernel family.
//
// Plain C, so that the host can read it too; src/params.rs mirrors it field by field and a test holds the two together.
// Rules: fixed-width fields without holes; device addresses come first, so that a struct is relocated by
// rewriting its leading 8-byte words (their number is in the catalogue); an address of 0 means "there is none".
// Strides and counts are in elements unless their name ends in _bytes.
#ifndef ROTA_PARAMS_H
#define ROTA_PARAMS_H

#include <stdint.h>

// What happens to y = f(x) last. Parameters a and b belong to some of them.
enum RotaActivation {
  ROTA_IDENTITY = 0,
  ROTA_RELU = 1,
  ROTA_CLIP = 2,          // min(max(x, a), b)
  ROTA_SIGMOID = 3,
  ROTA_TANH = 4,
  ROTA_HARD_SIGMOID = 5,  // clip(a * x + b, 0, 1)
  ROTA_HARD_SWISH = 6,    // x * clip(a * x + b, 0, 1)
  ROTA_SWISH = 7,         // x * sigmoid(x)
  ROTA_GELU = 8,          // x * (1 + erf(x / sqrt 2)) / 2
  ROTA_LEAKY_RELU = 9,    // x < 0 ? a * x : x
  ROTA_ELU = 10,          // x < 0 ? a * (exp(x) - 1) : x
};

// y = activation(scale * sum + bias_scale * bias + residual), or, with `residual_last`, the residual added after the activation.
typedef struct Epilogue {
  float scale;
  float bias_scale;
  uint32_t activation;  // RotaActivation
  float a;
  float b;
  uint32_t residual_last;
  uint32_t bias_row;     // strides of the bias: 0 where it is broadcast
  uint32_t bias_column;
} Epilogue;

// n / divisor for n < 2^31 is (n * multiplier) >> (31 + shift).
typedef struct Divider {
  uint32_t divisor;
  uint32_t multiplier;
  uint32_t shift;
} Divider;

// c[o,i] = epilogue(a[o,i] b[o,i]) for o < batch_outer, i < batch_inner.
// a is rows x depth, b depth x columns; of each one's two strides at least one should be 1 for speed, none has to be.
typedef struct GemmParams {
  uint64_t a;
  uint64_t b;
  uint64_t c;
  uint64_t bias;
  uint64_t residual;  // laid out like c
  uint64_t partial;   // f32 [parts][batch_outer][batch_inner][rows][columns]: what a split depth's sums become instead of c; 0 for none
  uint64_t a_outer;   // strides between batches
  uint64_t a_inner;
  uint64_t b_outer;
  uint64_t b_inner;
  uint64_t c_outer;
  uint64_t c_inner;
  uint32_t rows;
  uint32_t columns;
  uint32_t depth;
  uint32_t batch_outer;
  uint32_t batch_inner;
  uint32_t a_row;
  uint32_t a_depth;
  uint32_t b_depth;
  uint32_t b_column;
  uint32_t c_row;  // c's columns lie side by side
  uint32_t a_vector;  // 1: four neighbours along the stride of 1 may be loaded at once
  uint32_t b_vector;
  uint32_t split_depth;  // of a part, a multiple of the tile's steps; all of the depth where it is not split
  uint32_t reserved;
  Epilogue epilogue;
} GemmParams;

// y[i, j, k, l] = epilogue(sum over the parts of partial[part, i, j, k, l]).
typedef struct SplitParams {
  uint64_t partial;  // f32, without gaps
  uint64_t y;
  uint64_t bias;
  uint64_t residual;  // laid out like y
  uint64_t y_strides[4];
  uint32_t bias_strides[4];  // in place of the epilogue's
  Divider dims[4];
  uint32_t parts;
  uint32_t count;  // of y's elements
  Epilogue epilogue;
} SplitParams;

// y[o, c, i] = exp(x[o, c, i] - max) / sum over c; log of it when `log` is 1.
typedef struct SoftmaxParams {
  uint64_t x;
  uint64_t y;
  uint32_t outer;
  uint32_t columns;
  uint32_t inner;
  uint32_t log;
} SoftmaxParams;

// Element types that memory can hold.
enum RotaType {
  ROTA_F32 = 0,
  ROTA_F16 = 1,
  ROTA_BF16 = 2,
  ROTA_I8 = 3,
  ROTA_U8 = 4,
  ROTA_I16 = 5,
  ROTA_U16 = 6,
  ROTA_I32 = 7,
  ROTA_U32 = 8,
  ROTA_I64 = 9,
  ROTA_BOOL = 10,  // one byte, 0 or 1
};

#define ROTA_RANK 6

// Steps of the fused expression: x is the accumulator, y and z are the step's operands.
enum RotaOp {
  ROTA_OP_LOAD = 0,      // y
  ROTA_OP_SAVE = 1,      // slot[y's index] = x
  ROTA_OP_ADD = 2,       // x + y
  ROTA_OP_SUB = 3,       // x - y
  ROTA_OP_SUB_FROM = 4,  // y - x
  ROTA_OP_MUL = 5,       // x * y
  ROTA_OP_DIV = 6,       // x / y; integers towards zero
  ROTA_OP_DIV_INTO = 7,  // y / x
  ROTA_OP_POW = 8,       // x to the y
  ROTA_OP_POW_OF = 9,    // y to the x
  ROTA_OP_MIN = 10,      // NaN when either is
  ROTA_OP_MAX = 11,
  ROTA_OP_MOD = 12,      // sign of y
  ROTA_OP_MOD_OF = 13,   // y mod x, sign of x
  ROTA_OP_FMOD = 14,     // sign of x
  ROTA_OP_FMOD_OF = 15,
  ROTA_OP_MUL_ADD = 16,  // x * y + z
  ROTA_OP_CLIP = 17,     // min(max(x, y), z)
  ROTA_OP_SELECT = 18,   // x != 0 ? y : z
  ROTA_OP_EQUAL = 19,    // 1 or 0, like all comparisons
  ROTA_OP_LESS = 20,
  ROTA_OP_LESS_EQUAL = 21,
  ROTA_OP_GREATER = 22,
  ROTA_OP_GREATER_EQUAL = 23,
  ROTA_OP_AND = 24,  // of truth values
  ROTA_OP_OR = 25,
  ROTA_OP_XOR = 26,
  ROTA_OP_NOT = 27,
  ROTA_OP_NEG = 28,
  ROTA_OP_ABS = 29,
  ROTA_OP_SIGN = 30,
  // From here on f32 only.
  ROTA_OP_SQRT = 31,
  ROTA_OP_RECIPROCAL = 32,
  ROTA_OP_EXP = 33,
  ROTA_OP_LOG = 34,
  ROTA_OP_FLOOR = 35,
  ROTA_OP_CEIL = 36,
  ROTA_OP_ROUND = 37,  // ties to even
  ROTA_OP_TRUNC = 38,
  ROTA_OP_ERF = 39,
  ROTA_OP_TANH = 40,
  ROTA_OP_SIGMOID = 41,
  ROTA_OP_SOFTPLUS = 42,
  ROTA_OP_SOFTSIGN = 43,
  ROTA_OP_HARD_SIGMOID = 44,  // clip(y * x + z, 0, 1)
  ROTA_OP_HARD_SWISH = 45,    // x * clip(y * x + z, 0, 1)
  ROTA_OP_SWISH = 46,
  ROTA_OP_GELU = 47,
  ROTA_OP_PRELU = 48,  // x < 0 ? y * x : x
  ROTA_OP_ELU = 49,    // x < 0 ? y * (exp(x) - 1) : x
  ROTA_OP_SIN = 50,
  ROTA_OP_COS = 51,
  ROTA_OP_TAN = 52,
  ROTA_OP_ASIN = 53,
  ROTA_OP_ACOS = 54,
  ROTA_OP_ATAN = 55,
  ROTA_OP_SINH = 56,
  ROTA_OP_COSH = 57,
  ROTA_OP_ASINH = 58,
  ROTA_OP_ACOSH = 59,
  ROTA_OP_ATANH = 60,
  ROTA_OP_IS_NAN = 61,
  ROTA_OP_IS_INF = 62,  // x = +inf and y != 0, or x = -inf and z != 0
  // And these integers only.
  ROTA_OP_BIT_AND = 63,
  ROTA_OP_BIT_OR = 64,
  ROTA_OP_BIT_XOR = 65,
  ROTA_OP_BIT_NOT = 66,
  ROTA_OP_SHIFT_LEFT = 67,
  ROTA_OP_SHIFT_RIGHT = 68,
};

// Where an operand comes from: the kind, and below it an index.
enum RotaSource { ROTA_NOTHING = 0, ROTA_INPUT = 1, ROTA_SLOT = 2, ROTA_CONSTANT = 3 };

#define ROTA_INPUTS 8
#define ROTA_SLOTS 4
#define ROTA_STEPS 24

typedef struct Step {
  uint32_t op;        // RotaOp
  uint32_t y;         // RotaSource * 256 + index of the input or slot
  uint32_t z;
  uint32_t reserved;  // 0
  int64_t y_constant; // the integer, or an f32's bits
  int64_t z_constant;
} Step;

// output[i] = the steps' result; the output is contiguous, inputs are broadcast by strides of 0.
typedef struct ElementwiseParams {
  uint64_t output;
  uint64_t inputs[ROTA_INPUTS];
  uint32_t count;
  uint32_t rank;
  uint32_t steps;
  uint32_t output_type;                  // RotaType
  uint32_t quads;                        // 1: the innermost dimension is a multiple of 4
  uint32_t input_types[ROTA_INPUTS];     // RotaType
  uint32_t modes[ROTA_INPUTS];           // RotaMode
  Divider dims[ROTA_RANK];               // outermost first
  uint32_t strides[ROTA_INPUTS][ROTA_RANK];
  uint32_t output_vector;                // 1: the output is aligned to four elements
  Step program[ROTA_STEPS];
} ElementwiseParams;

// How an input is read.
enum RotaMode {
  ROTA_STRIDED = 0,
  ROTA_CONTIGUOUS = 1,  // laid out like the output, and aligned to four elements
  ROTA_SCALAR = 2,      // one element for all
};

// y[n, f, oy, ox] = epilogue(sum over c, ky, kx of x[n, c, oy * stride_y + ky * dilation_y - pad_top, ...] * w[f, c, ky, kx]).
// Of a transposed convolution, w is [channels, group_filters, kernel_height, kernel_width], and y what x was above.
typedef struct ConvParams {
  uint64_t x;
  uint64_t w;
  uint64_t y;
  uint64_t bias;      // per filter
  uint64_t residual;  // laid out like y
  uint64_t partial;   // f32 [parts][filters][images][out_height][out_width]: as GemmParams has it
  uint32_t images;
  uint32_t channels;  // of all groups together
  uint32_t height;
  uint32_t width;
  uint32_t filters;  // of all groups together
  uint32_t out_height;
  uint32_t out_width;
  uint32_t groups;
  uint32_t group_channels;
  uint32_t group_filters;
  uint32_t kernel_height;
  uint32_t kernel_width;
  uint32_t stride_y;
  uint32_t stride_x;
  uint32_t dilation_y;
  uint32_t dilation_x;
  int32_t pad_top;
  int32_t pad_left;
  uint32_t w_vector;  // 1: four neighbouring weights may be loaded at once
  Divider by_out_pixels;
  Divider by_out_width;
  Divider by_out_height;
  Divider by_kernel_area;
  Divider by_kernel_width;
  Divider by_filters;  // depthwise: filters; transposed: fours of filters
  Divider by_across;   // depthwise: fours of out_width
  uint32_t split_depth;  // as GemmParams has it
  uint32_t reserved;
  Epilogue epilogue;
} ConvParams;

enum RotaPool { ROTA_POOL_MAX = 0, ROTA_POOL_AVERAGE = 1 };

// y[plane, oy, ox] = maximum or average of x over a window.
typedef struct PoolParams {
  uint64_t x;
  uint64_t y;
  uint32_t count;  // outputs
  uint32_t height;
  uint32_t width;
  uint32_t kernel_height;
  uint32_t kernel_width;
  uint32_t stride_y;
  uint32_t stride_x;
  uint32_t dilation_y;
  uint32_t dilation_x;
  int32_t pad_top;
  int32_t pad_left;
  uint32_t padded_height;  // with the padding before and behind; what an average that counts padding may divide by
  uint32_t padded_width;
  uint32_t mode;            // RotaPool
  uint32_t counts_padding;  // 1: an average divides by the window's part in the padded picture
  Divider by_out_width;
  Divider by_out_height;
  uint32_t reserved;
} PoolParams;

enum RotaReduction {
  ROTA_REDUCE_SUM = 0,
  ROTA_REDUCE_MEAN = 1,
  ROTA_REDUCE_MAX = 2,
  ROTA_REDUCE_MIN = 3,
  ROTA_REDUCE_PRODUCT = 4,
  ROTA_REDUCE_SUM_SQUARE = 5,
  ROTA_REDUCE_L1 = 6,
  ROTA_REDUCE_L2 = 7,
  ROTA_REDUCE_LOG_SUM = 8,
  ROTA_REDUCE_LOG_SUM_EXP = 9,
  ROTA_REDUCE_ARG_MAX = 10,  // y is i64
  ROTA_REDUCE_ARG_MIN = 11,
};

// y[o, i] = reduction of x[o, :, i].
typedef struct ReduceParams {
  uint64_t x;
  uint64_t y;
  uint32_t outer;
  uint32_t count;
  uint32_t inner;
  uint32_t reduction;  // RotaReduction
  uint32_t last;       // 1: of equal extremes the last one's index
  uint32_t reserved;
  Divider by_inner;
  uint32_t reserved_too;
} ReduceParams;

// y[sum of index * y_stride] = x[sum of index * x_stride], in units of the kernel's size.
typedef struct CopyParams {
  uint64_t x;
  uint64_t y;
  uint32_t count;
  uint32_t rank;
  Divider dims[ROTA_RANK];  // outermost first
  int32_t x_strides[ROTA_RANK];
  int32_t y_strides[ROTA_RANK];
} CopyParams;

#define ROTA_OUTER 4

// y[outer, c, r] = x[outer, r, c] with c contiguous in x and r contiguous in y.
typedef struct TransposeParams {
  uint64_t x;
  uint64_t y;
  uint32_t rows;
  uint32_t columns;
  uint32_t x_row;
  uint32_t y_column;
  uint32_t outers;  // product of the outer dimensions
  uint32_t rank;    // of them
  Divider dims[ROTA_OUTER];
  uint32_t x_strides[ROTA_OUTER];
  uint32_t y_strides[ROTA_OUTER];
} TransposeParams;

// y[o, j, i] = x[o, index, i] in units of the kernel's size, where index is indices[j] or, per element, indices[o, j, i].
// One that is out of range is clamped, and the item that it belongs to is marked.
typedef struct GatherParams {
  uint64_t x;
  uint64_t indices;
  uint64_t y;
  uint64_t flags;  // a word per item, set to 1
  uint32_t outer;
  uint32_t axis;   // size of x's gathered dimension
  uint32_t count;  // indices per outer step
  uint32_t inner;
  uint32_t wide;         // 1: indices are i64, 0: i32
  uint32_t per_element;  // 1: an index for each element
  Divider by_inner;
  Divider by_count;
  Divider by_item;  // indices per item
  uint32_t reserved;
} GatherParams;

enum RotaPad { ROTA_PAD_CONSTANT = 0, ROTA_PAD_REFLECT = 1, ROTA_PAD_EDGE = 2, ROTA_PAD_WRAP = 3 };

// y is x with `begin` elements in front of each axis (negative: cut off) and as many behind as its size asks for.
typedef struct PadParams {
  uint64_t x;
  uint64_t y;
  uint64_t value;  // the constant's bits
  uint32_t count;
  uint32_t rank;
  uint32_t mode;  // RotaPad
  uint32_t reserved;
  Divider dims[ROTA_RANK];  // of y, outermost first
  int32_t sizes[ROTA_RANK];  // of x
  int32_t begins[ROTA_RANK];
  uint32_t strides[ROTA_RANK];  // of x
} PadParams;

// y[plane, oy, ox] = sum of weights * x over taps_y x taps_x places that two tables name.
typedef struct ResizeParams {
  uint64_t x;
  uint64_t y;
  uint64_t rows;     // u32 [out_height, taps_y]: the rows of x
  uint64_t row_weights;  // f32, the same shape
  uint64_t columns;  // u32 [out_width, taps_x]
  uint64_t column_weights;
  uint32_t count;  // outputs
  uint32_t height;
  uint32_t width;
  uint32_t taps_y;
  uint32_t taps_x;
  uint32_t reserved;
  Divider by_out_width;
  Divider by_out_height;
} ResizeParams;

// y[r, c] = (x[r, c] - mean of the row) / sqrt(variance + epsilon) * gamma + beta.
// gamma and beta are at (r % row_period) * row_step + c / by_column.
typedef struct NormalizeParams {
  uint64_t x;
  uint64_t y;
  uint64_t gamma;
  uint64_t beta;
  uint64_t residual;  // added to x first; 0 for none
  uint32_t rows;
  uint32_t columns;
  uint32_t row_period;
  uint32_t row_step;
  float epsilon;
  uint32_t root_mean_square;  // 1: neither is the mean subtracted nor in the variance
  Divider by_column;
  uint32_t reserved;
} NormalizeParams;

// One step of a recurrent layer for all items: gates += hidden_in * weights^T, then the cell's formulas.
typedef struct RecurrentParams {
  uint64_t gates;       // [batch, GATES * hidden]: the input's part, with the biases
  uint64_t weights;     // [GATES * hidden, hidden]
  uint64_t hidden_in;   // [batch, hidden]; 0: zeros
  uint64_t cell_in;     // LSTM only
  uint64_t hidden_out;
  uint64_t cell_out;    // LSTM; of a GRU's first half z, [batch, hidden]
  uint64_t peepholes;   // LSTM: [3 * hidden] for i, o, f; 0 for none
  uint64_t bias;        // GRU with linear_before_reset: [hidden], added to the recurrent part of h; 0 for none
  uint64_t lengths;     // i32 [batch]: an item whose length is not above `step` keeps its state; 0 for none
  uint64_t output;      // [batch, hidden]: hidden_out again, or zeros past an item's length; 0 for none
  uint32_t batch;
  uint32_t hidden;
  uint32_t step;
  uint32_t gates_row;   // stride between items of `gates`
} RecurrentParams;

// y = softmax(scale * q k^T + mask) v for every (outer, head); strides in elements, the last axis contiguous.
typedef struct AttentionParams {
  uint64_t q;
  uint64_t k;
  uint64_t v;
  uint64_t mask;  // added; 0 for none
  uint64_t y;
  uint64_t q_strides[3];  // outer, head, row
  uint64_t k_strides[3];
  uint64_t v_strides[3];
  uint64_t y_strides[3];
  uint64_t mask_strides[4];  // outer, head, row, column
  uint32_t outers;
  uint32_t heads;
  uint32_t rows;     // of q and y
  uint32_t columns;  // rows of k and v
  uint32_t size;     // of a head: columns of q and k
  uint32_t v_size;   // columns of v and y
  float scale;
  uint32_t causal;  // 1: row r sees columns up to r + columns - rows
} AttentionParams;

// One product of a grouped launch, in a table that may change between launches: c = epilogue(a b), rows of a and c side by side.
typedef struct GroupedProblem {
  uint64_t a;
  uint64_t b;
  uint64_t c;
  uint64_t bias;
  uint64_t residual;
  uint32_t rows;  // 0: nothing to do this time
  uint32_t columns;
  uint32_t depth;
  uint32_t a_row;
  uint32_t a_depth;
  uint32_t b_depth;
  uint32_t b_column;
  uint32_t c_row;
  uint32_t a_vector;
  uint32_t b_vector;
  Epilogue epilogue;
} GroupedProblem;

typedef struct GroupedParams {
  uint64_t problems;  // GroupedProblem [count]
  uint32_t count;
  uint32_t reserved;
} GroupedParams;

// One piece of a batch that is put together or taken apart.
typedef struct MoveEntry {
  uint64_t source;  // 0: zeros
  uint64_t target;
  uint64_t bytes;
} MoveEntry;

typedef struct MoveParams {
  uint64_t entries;  // MoveEntry []
  uint64_t count;    // u32: how many there are this time
} MoveParams;

#endif
