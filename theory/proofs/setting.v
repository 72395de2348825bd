(** The setting of every theorem in this folder, and what their proofs share.

    A real inner-product space [E]; a set [K] in it; losses [L t], upper smooth on [K]; a run [W 1, ..., W (T + 1)] with the
    oracle's answers [V t], their shortfalls [eps t], step sizes [eta t] and gaps [gap t]. Nothing is an axiom: the space, the
    problem and the run are arguments of every theorem. *)

From Coq Require Export Reals Lra Lia.
From Coq Require Import Arith.
Open Scope R_scope.

(** * Sums over iterations *)

(** [f 1 + ... + f n] *)
Fixpoint sum (f : nat -> R) (n : nat) : R :=
  match n with
  | O => 0
  | S m => sum f m + f n
  end.

Definition mean (f : nat -> R) (n : nat) : R := sum f n / INR n.

(** * The space *)

(** A real inner-product space. Of its laws these are the ones that a proof here uses: every inner-product space satisfies
    them. *)
Record InnerProductSpace := {
  vector :> Type;
  plus : vector -> vector -> vector;
  scale : R -> vector -> vector;
  inner : vector -> vector -> R;
  inner_sym : forall x y, inner x y = inner y x;
  inner_plus : forall x y z, inner (plus x y) z = inner x z + inner y z;
  inner_scale : forall a x z, inner (scale a x) z = a * inner x z;
  inner_nonneg : forall x, 0 <= inner x x;
}.

Arguments plus {_}.
Arguments scale {_}.
Arguments inner {_}.

Declare Scope vector_scope.
Delimit Scope vector_scope with V.
Bind Scope vector_scope with vector.

Notation "x + y" := (plus x y) : vector_scope.
Notation "a * x" := (scale a%R x) : vector_scope.
Notation "x - y" := (plus x (scale (-1) y)) : vector_scope.
Notation "⟨ x , y ⟩" := (inner x%V y%V) (at level 0) : R_scope.
Notation "‖ x ‖²" := (inner x%V x%V) (at level 0) : R_scope.

(** * Problems and runs *)

(** A set, a loss for every iteration (the same for all where it is [Static]), its gradients, and its curvature. *)
Record Problem (E : InnerProductSpace) := {
  K : E -> Prop;
  L : nat -> E -> R;
  G : nat -> E -> E;
  beta : R;
}.

Arguments K {E}.
Arguments L {E}.
Arguments G {E}.
Arguments beta {E}.

(** What the record of [T] iterations says: where the run was, what the oracle answered, how much that fell short, how far the
    step went, and the gap. *)
Record Run (E : InnerProductSpace) := {
  T : nat;
  W : nat -> E;
  V : nat -> E;
  eps : nat -> R;
  eta : nat -> R;
  gap : nat -> R;
}.

Arguments T {E}.
Arguments W {E}.
Arguments V {E}.
Arguments eps {E}.
Arguments eta {E}.
Arguments gap {E}.

Section Setting.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E).

  Definition iteration (t : nat) : Prop := (1 <= t <= T run)%nat.

  (** The gradient [G_t] at [W_t]. *)
  Definition gradient (t : nat) : E := G P t (W run t).

  (** ** What is asked of every problem and run *)

  Definition Convex_set : Prop := forall X Y s, K P X -> K P Y -> 0 <= s <= 1 -> K P (X + s * (Y - X)).

  (** (A1) Only the upper half of smoothness, and on [K] only. *)
  Definition Upper_smooth : Prop :=
    0 <= beta P /\
    forall t X Y, K P X -> K P Y -> L P t Y <= L P t X + ⟨G P t X, Y - X⟩ + beta P / 2 * ‖Y - X‖².

  (** (A2) [<V_t, G_t> <= min_K <Z, G_t> + eps_t] *)
  Definition Inexact_oracle : Prop :=
    forall t, iteration t -> K P (V run t) /\ forall Z, K P Z -> ⟨V run t, gradient t⟩ <= ⟨Z, gradient t⟩ + eps run t.

  (** [g_t] is no more than the largest [<G_t, W_t - Z>]: some point of [K] attains it. *)
  Definition Gap_attained : Prop :=
    forall t, iteration t -> exists Z, K P Z /\ gap run t <= ⟨gradient t, W run t - Z⟩.

  Record Setting : Prop := {
    some_iteration : (1 <= T run)%nat;
    convex_set : Convex_set;
    upper_smooth : Upper_smooth;
    inexact_oracle : Inexact_oracle;
    gap_attained : Gap_attained;
  }.

  (** ** Constants *)

  Definition Diameter (D : R) : Prop := forall X Y, K P X -> K P Y -> ‖X - Y‖² <= D ^ 2.

  Definition Ball (c : E) (R : R) : Prop := 0 <= R /\ forall X, K P X -> ‖X - c‖² <= R ^ 2.

  (** [M >= L_1(W_1) - min L_1] *)
  Definition Initial_gap (M : R) : Prop := forall Z, K P Z -> L P 1 (W run 1) - L P 1 Z <= M.

  (** [Mo >= L_1(W_t) - min L_1] for every [t] *)
  Definition Oscillation (Mo : R) : Prop := forall t Z, iteration t -> K P Z -> L P 1 (W run t) - L P 1 Z <= Mo.

  (** The decrease [L_1(W_1) - L_T(W_{T+1})], h' in the theorems. *)
  Definition decrease : R := L P 1 (W run 1) - L P (T run) (W run (S (T run))).
End Setting.
