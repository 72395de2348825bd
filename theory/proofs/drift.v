(** Theorem E: the loss moves between iterations. Its drift is paid like a part of the initial gap, by Theorem A's step if that
    knows it, and by the short step, which need not. *)

From FrankWolfe Require Import setting assumptions lemmas huber.
From FrankWolfe Require fixed_step short_step.

(** [up] and [down] are Delta+ and Delta-: the sums over [t < T] of what bounds [L_{t+1} - L_t] and [L_t - L_{t+1}] on [K]. *)
Definition Drift {E : InnerProductSpace} (P : Problem E) (run : Run E) (up down : R) : Prop :=
  exists rise drop : nat -> R,
    (forall t X, (1 <= t < T run)%nat -> K P X -> L P (S t) X - L P t X <= rise t /\ L P t X - L P (S t) X <= drop t) /\
    sum rise (T run - 1) <= up /\ sum drop (T run - 1) <= down.

(** What the losses rise by where the run is: the sum over [t < T] of [(L_{t+1} - L_t)(W_{t+1})]. *)
Definition risen {E : InnerProductSpace} (P : Problem E) (run : Run E) : R :=
  sum (fun t => L P (S t) (W run (S t)) - L P t (W run (S t))) (T run - 1).

(** Telescoped, for every step size [e] in (0, 1]: from the record alone. *)
Definition telescoped_fixed : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D e : R),
  Setting P run -> Diameter P D ->
  FrankWolfeStep P run true -> ConstantStep P run false e ->
  mean (gap run) (T run)
  <= (decrease P run + risen P run) / (e * INR (T run)) + beta P * D ^ 2 * e / 2 + mean (eps run) (T run).

(** And for the short step. *)
Definition telescoped_short : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D : R),
  Setting P run -> Diameter P D ->
  FrankWolfeStep P run true -> ShortStepOrBetter P run ->
  mean (gap run) (T run)
  <= phi_inverse ((decrease P run + risen P run) / INR (T run)) (beta P * D ^ 2) + mean (eps run) (T run).

Definition telescoped : Prop := telescoped_fixed /\ telescoped_short.

(** Theorem A's with [M + Delta+ + Delta-] in place of [M]. *)
Definition value (M up down C T : R) : R := phi_inverse ((M + up + down) / T) C.

(** Closed: with a step that knows [M + Delta+ + Delta-], or with the short step. *)
Definition statement : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M up down : R),
  Setting P run -> Diameter P D -> Initial_gap P run M -> Drift P run up down ->
  FrankWolfeStep P run true -> FixedOrShortStep P run (best_fixed (M + up + down) (beta P * D ^ 2) (INR (T run))) ->
  mean (gap run) (T run) <= value M up down (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** [sqrt (2 M beta) D/sqrt T (1 + Delta/(2 M))]: it vanishes only where Delta grows more slowly than [sqrt T]. *)
Definition value_tuned_to_M_alone (M up down C T : R) : R := sqrt (2 * M * C / T) * (1 + (up + down) / (2 * M)).

(** With the step of Theorem A, which knows [M] but no drift. *)
Definition tuned_to_M_alone : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D M up down : R),
  Setting P run -> Diameter P D -> Initial_gap P run M -> Drift P run up down ->
  FrankWolfeStep P run true -> ConstantStep P run false (best_fixed M (beta P * D ^ 2) (INR (T run))) ->
  0 < M -> 2 * M <= beta P * D ^ 2 * INR (T run) ->
  mean (gap run) (T run) <= value_tuned_to_M_alone M up down (beta P * D ^ 2) (INR (T run)) + mean (eps run) (T run).

(** One loss has no drift, and then this is Theorem A and Theorem D. *)
Definition static_has_no_drift : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E), Static P -> Drift P run 0 0.

(** * Proof *)

(** ** What the falls add up to *)

Section Falls.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E).

  Lemma falls_telescope n :
    sum (fall P run) (S n)
    = L P 1 (W run 1) - L P (S n) (W run (S (S n))) + sum (fun t => L P (S t) (W run (S t)) - L P t (W run (S t))) n.
  Proof. induction n as [| n IH]; unfold fall in *; simpl in *; lra. Qed.

  Hypothesis setting : Setting P run.

  Lemma falls_of_moving_losses : sum (fall P run) (T run) = decrease P run + risen P run.
  Proof.
    pose proof (some_iteration _ _ setting) as some. unfold decrease, risen. destruct (T run) as [| n]; [lia |].
    replace (S n - 1)%nat with n by lia. apply falls_telescope.
  Qed.

  Variables (M up down : R).
  Hypotheses (step : FrankWolfeStep P run true) (initial : Initial_gap P run M) (drift : Drift P run up down).

  (** [L_1(W_1) - L_T(Z) = (L_1(W_1) - L_1(Z)) + (L_1(Z) - L_T(Z)) <= M + Delta-] at [Z = W_{T+1}] *)
  Lemma decrease_below_what_is_known : decrease P run <= M + down.
  Proof.
    destruct drift as (rise & drop & moves & _ & falls). pose proof (some_iteration _ _ setting) as some.
    assert (last : K P (W run (S (T run)))) by (apply step_is_feasible; auto; lia).
    set (Z := W run (S (T run))) in *. unfold decrease. fold Z. pose proof (initial Z last).
    assert (moved : L P 1 Z - L P (T run) Z <= sum drop (T run - 1)); [| lra].
    replace (T run) with (S (T run - 1)) at 1 by lia. rewrite <- (telescope (fun t => L P t Z)).
    apply sum_le. intros t range. apply moves; [lia | assumption].
  Qed.

  Lemma risen_below_drift : risen P run <= up.
  Proof.
    destruct drift as (rise & drop & moves & rises & _). eapply Rle_trans; [| exact rises].
    apply sum_le. intros t range. apply moves; [lia |]. apply step_is_feasible; auto; lia.
  Qed.

  Lemma falls_below_what_is_known : sum (fall P run) (T run) <= M + up + down.
  Proof. rewrite falls_of_moving_losses. pose proof decrease_below_what_is_known. pose proof risen_below_drift. lra. Qed.

  (** Either may be negative, but not both together. *)
  Lemma drift_nonneg : 0 <= up + down.
  Proof.
    destruct drift as (rise & drop & moves & rises & falls).
    assert (0 <= sum (fun t => rise t + drop t) (T run - 1)); [| rewrite sum_plus in *; lra].
    apply sum_nonneg. intros t range. pose proof (moves t _ ltac:(lia) (proj1 step)). lra.
  Qed.
End Falls.

(** ** A fixed step *)

Lemma fixed_step_pays {E : InnerProductSpace} (P : Problem E) (run : Run E) D e falls :
  Setting P run -> Diameter P D -> FrankWolfeStep P run true -> ConstantStep P run false e ->
  sum (fall P run) (T run) <= falls ->
  mean (gap run) (T run) <= falls / (e * INR (T run)) + beta P * D ^ 2 * e / 2 + mean (eps run) (T run).
Proof.
  intros setting diameter step constant bounded.
  eapply Rle_trans; [now apply (fixed_step.summed P run D e) |]. do 2 apply Rplus_le_compat_r.
  apply Rmult_le_compat_r; [| assumption]. left. apply Rinv_0_lt_compat.
  apply Rmult_lt_0_compat; [apply constant | apply horizon_positive, (some_iteration _ _ setting)].
Qed.

(** Tuned to [M] alone: [M/(e n) + C e/2 = sqrt (2 M C/n)], and the drift adds [Delta/(e n)]. *)
Lemma best_fixed_under_drift M C n drift : 0 < M -> 0 < n -> 2 * M <= C * n ->
  (M + drift) / (best_fixed M C n * n) + C * best_fixed M C n / 2 = sqrt (2 * M * C / n) * (1 + drift / (2 * M)).
Proof.
  intros M_positive n_positive long. assert (bent : 0 < C) by nra.
  pose proof (best_fixed_in_range M C n M_positive) as range.
  assert (square : best_fixed M C n ^ 2 * (C * n) = 2 * M).
  { unfold best_fixed. destruct (Rle_dec (C * n) (2 * M)); [lra |].
    rewrite pow2_sqrt by (apply Rle_mult_inv_pos; lra). field. lra. }
  set (e := best_fixed M C n) in *.
  (* M = C e^2 n/2, so that the root is C e *)
  replace M with (C * e ^ 2 * n / 2) by lra.
  replace (2 * (C * e ^ 2 * n / 2) * C / n) with ((C * e) * (C * e)) by (field; lra).
  rewrite sqrt_square by (apply Rmult_le_pos; lra). field. lra.
Qed.

(** ** The theorems *)

Theorem DriftTelescoped : telescoped.
Proof.
  split.
  - intros E P run D e setting diameter step constant.
    apply fixed_step_pays; try assumption. now apply Req_le, falls_of_moving_losses.
  - intros E P run D setting diameter step short.
    apply short_step.summed; try assumption. now apply Req_le, falls_of_moving_losses.
Qed.

Theorem DriftTunedToMAlone : tuned_to_M_alone.
Proof.
  intros E P run D M up down setting diameter initial drift step constant M_positive long.
  pose proof (horizon_positive _ (some_iteration _ _ setting)). unfold value_tuned_to_M_alone.
  rewrite <- best_fixed_under_drift by assumption.
  apply fixed_step_pays; try assumption. rewrite <- Rplus_assoc. now apply falls_below_what_is_known.
Qed.

Theorem DriftBound : statement.
Proof.
  intros E P run D M up down setting diameter initial drift step [constant | short]; unfold value.
  - pose proof (initial_gap_nonneg P run M step initial). pose proof (drift_nonneg P run up down step drift).
    rewrite <- best_fixed_reaches_phi_inverse.
    + apply fixed_step_pays; try assumption. now apply falls_below_what_is_known.
    + lra.
    + now apply (curvature_nonneg P run).
    + apply horizon_positive, (some_iteration _ _ setting).
    + apply constant.
  - apply short_step.summed; try assumption. now apply falls_below_what_is_known.
Qed.

(** ** One loss *)

Theorem StaticHasNoDrift : static_has_no_drift.
Proof.
  intros E P run static. exists (fun _ => 0), (fun _ => 0). rewrite sum_constant.
  split; [| lra]. intros t X _ _. rewrite (static (S t)), (static t). lra.
Qed.

Theorem FixedStepWithoutDrift : fixed_step.statement.
Proof.
  intros E P run D M setting diameter initial static step constant.
  pose proof (DriftBound E P run D M 0 0 setting diameter initial (StaticHasNoDrift E P run static) step) as bound.
  unfold value in bound. rewrite !Rplus_0_r in bound. apply bound. now left.
Qed.

Theorem ShortStepWithoutDrift : short_step.statement.
Proof.
  intros E P run D M setting diameter initial static step short.
  pose proof (DriftBound E P run D M 0 0 setting diameter initial (StaticHasNoDrift E P run static) step) as bound.
  unfold value in bound. rewrite !Rplus_0_r in bound. apply bound. now right.
Qed.
