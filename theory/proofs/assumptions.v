(** What single theorems ask beyond the setting: `theory.bounds.assumptions`, by the same names. *)

From FrankWolfe Require Import setting.

Section Assumptions.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E).

  (** ** Of the problem *)

  (** The loss does not change with the iteration. *)
  Definition Static : Prop := forall t X, L P t X = L P 1 X.

  (** The losses are convex on [K]. *)
  Definition Convex : Prop := forall t X Y, K P X -> K P Y -> L P t X + ⟨G P t X, Y - X⟩ <= L P t Y.

  (** The least loss is known: it is that of [Z]. *)
  Definition KnownMinimum (Z : E) : Prop := K P Z /\ forall t X, K P X -> L P t Z <= L P t X.

  (** beta holds on the whole space. *)
  Definition HoldsEverywhere : Prop := forall X, K P X.

  (** ** Of the run *)

  (** (A3) [W_{t+1} = W_t + eta_t (V_t - W_t)], or, where that is admitted, a point of [K] of no higher loss. *)
  Definition FrankWolfeStep (or_lower : bool) : Prop :=
    K P (W run 1) /\
    forall t, iteration run t ->
      0 <= eta run t <= 1 /\
      let next := (W run t + eta run t * (V run t - W run t))%V in
      if or_lower then K P (W run (S t)) /\ L P t (W run (S t)) <= L P t next else W run (S t) = next.

  (** One step size [e > 0] for all iterations, and below 1 where that is asked, unless [beta = 0]. *)
  Definition ConstantStep (below_one : bool) (e : R) : Prop :=
    0 < e /\ (forall t, iteration run t -> eta run t = e) /\ if below_one then e < 1 \/ beta P = 0 else True.

  (** [min(1, sqrt(Mo/(C t)))], and 1 for [C = 0]. *)
  Definition anytime (Mo C t : R) : R := if Rle_dec (C * t) Mo then 1 else sqrt (Mo / (C * t)).

  Definition AnytimeStep (Mo C : R) : Prop := forall t, iteration run t -> eta run t = anytime Mo C (INR t).

  Definition OpenLoopStep : Prop := forall t, iteration run t -> eta run t = 2 / (INR t + 1).

  (** [ghat_t = <G_t, W_t - V_t>], the gap as the oracle's answer shows it. *)
  Definition ghat (t : nat) : R := ⟨gradient P run t, W run t - V run t⟩.

  Definition distance2 (t : nat) : R := ‖V run t - W run t‖².

  (** How far the loss falls in an iteration. *)
  Definition fall (t : nat) : R := L P t (W run t) - L P t (W run (S t)).

  (** [clip(ghat/bend, 0, 1)], and the whole step where nothing bends. *)
  Definition short_step (ghat bend : R) : R :=
    if Rle_dec ghat 0 then 0 else if Rle_dec bend ghat then 1 else ghat / bend.

  (** The short step, or one that lowers the loss as far as any [s] in [0, 1] is sure to. *)
  Definition ShortStepOrBetter : Prop :=
    forall t, iteration run t ->
      eta run t = short_step (ghat t) (beta P * distance2 t) \/
      forall s, 0 <= s <= 1 -> s * ghat t - s ^ 2 * (beta P / 2 * distance2 t) <= fall t.

  Definition FixedOrShortStep (e : R) : Prop := ConstantStep false e \/ ShortStepOrBetter.

  (** [W_{t+1} = W_t + Delta_t] with admissible [Delta_t]: of rank at most r. *)
  Definition ChainStep (admissible : E -> Prop) : Prop :=
    forall t, iteration run t -> exists Delta, admissible Delta /\ W run (S t) = (W run t + Delta)%V.
End Assumptions.
